"""From a task's files or hub data set to tokenised splits."""
