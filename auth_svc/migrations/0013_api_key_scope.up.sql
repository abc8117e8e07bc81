-- Devices and gateways that a key is bound to; none of both: to none in particular. It never changes.
ALTER TABLE auth.api_key
    ADD COLUMN device_ids text[] COLLATE "C" NOT NULL DEFAULT '{}',
    ADD COLUMN gateway_ids text[] COLLATE "C" NOT NULL DEFAULT '{}';
