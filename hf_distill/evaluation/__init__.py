"""How good a student is: metrics, results, and the table of the three models."""
