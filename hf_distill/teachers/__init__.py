"""Who teaches: loading a teacher, checking that it can teach, and speaking its labels."""
