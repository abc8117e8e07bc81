"""SQL of schema `auth`."""
