"""What a study asks for: its configuration, its search space, and what can be checked without opening anything."""
