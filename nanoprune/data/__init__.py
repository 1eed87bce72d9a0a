"""Articles to a dataset folder, and the folder to training rows; knows no model."""
