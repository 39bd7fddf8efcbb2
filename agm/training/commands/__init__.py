"""The commands of `agm`, a file for those that belong together; agm.training.cli puts them under one name."""
