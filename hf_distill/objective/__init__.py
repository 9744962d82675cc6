"""What a student is taught by: tensors in, one value per row or token out."""
