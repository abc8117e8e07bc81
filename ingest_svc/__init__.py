"""Takes telemetry, decides what is stored, and answers when it is durable."""
