"""What tests of any service need: real PostgreSQL and NATS, neighbours, a clock to set."""
