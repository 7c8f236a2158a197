"""What lies on a disk is whole or not there; what is on the disk, read with clear errors."""
