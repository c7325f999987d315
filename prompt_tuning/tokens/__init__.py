"""From rows to tokens: flat arrays, and the steps of tokenising that all kinds share."""
