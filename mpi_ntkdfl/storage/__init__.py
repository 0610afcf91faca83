"""Files of a run: outputs and their lock, record, checkpoint, and how a run is resumed."""
