"""How far the scores of a search are to be trusted: a sample of its students, trained longer."""
