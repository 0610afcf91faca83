"""What all other folders build on: errors, seeds, logs, clock, devices, signals, launching."""
