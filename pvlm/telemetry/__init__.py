"""What others may watch: metrics, faults, records of an answer."""
