"""The samples of data sets, and their partition among clients."""
