"""What tests stand on: tiny models, loopback servers, processes, pages. Holds no test."""
