"""Fork kernel: sessions forked from a warm Python process and isolated before any code runs."""
