"""Where the files of a checkpoint are: local folders, the Hugging Face Hub, and any store that fsspec reaches."""
