"""A study: its configuration, the loop that runs it, and the records it leaves."""
