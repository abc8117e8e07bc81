-- Where a key may be used from; none: from anywhere.
ALTER TABLE auth.api_key ADD COLUMN allowed_addresses cidr[] NOT NULL DEFAULT '{}';
