"""What training asks of each layer."""
