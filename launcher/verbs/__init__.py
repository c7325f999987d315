"""The verbs of the driver, one file each."""
