"""What our HTTP servers share: who may call them, limits of connections, start and logging."""
