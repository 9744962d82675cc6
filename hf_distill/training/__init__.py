"""What a Python user meets: `DistillationTrainer` and the objects that it owns."""
