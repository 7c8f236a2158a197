"""What a MODEL_DIR says of itself."""
