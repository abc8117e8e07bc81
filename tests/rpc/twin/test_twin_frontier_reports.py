"""twin_svc reports which commits its twins show, and when it stops."""
