"""Who learns: students from a checkpoint, from a config, or from a teacher's layers."""
