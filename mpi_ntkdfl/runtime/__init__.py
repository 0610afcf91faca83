"""What everything else stands on: errors, seeds, logs, clock, devices, signals, launching."""
