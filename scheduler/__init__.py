"""The scheduler: tells every host which pieces to take from which parent."""
