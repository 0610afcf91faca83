"""What a run will take before it starts: bytes, memory, operations, seconds."""
