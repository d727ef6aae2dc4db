//! What one datagram looks like from outside: the header in front of the ciphertext, checked once.
