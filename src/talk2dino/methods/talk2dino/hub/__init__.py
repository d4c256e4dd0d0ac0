"""Models as files: published weights, folders in Hugging Face's layout, and uploading them."""
