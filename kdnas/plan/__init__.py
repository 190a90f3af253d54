"""The full training of one student: its file, its steps, and its export."""
