"""What lies on a disk is whole or not there; progress."""
