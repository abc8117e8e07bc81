-- Arrays as bytes (docs/adr/0016). As they lie in memory where somebody may let a function of PostgreSQL's own do that: a
-- superuser who migrates, or one who made public.twinmesh_array_bytes before; as array_send writes them otherwise.
DO $$
DECLARE
    convert text := 'pg_catalog.array_send';
BEGIN
    BEGIN
        -- Copies the bytes of a value of any length.
        CREATE FUNCTION telemetry.array_memory(anyarray) RETURNS bytea
            LANGUAGE internal IMMUTABLE STRICT PARALLEL SAFE AS 'byteasend';
        convert := 'telemetry.array_memory';
    EXCEPTION WHEN insufficient_privilege THEN
        -- Of no other language: that one only a superuser may use, while anybody's function would run as whoever reads.
        IF EXISTS (
            SELECT FROM pg_proc JOIN pg_language ON pg_language.oid = prolang
            WHERE pg_proc.oid = to_regprocedure('public.twinmesh_array_bytes(anyarray)')
              AND lanname = 'internal' AND prosrc = 'byteasend'
        ) THEN
            convert := 'public.twinmesh_array_bytes';
        END IF;
    END;
    EXECUTE format(
        'CREATE FUNCTION telemetry.array_bytes(elements anyarray) RETURNS bytea LANGUAGE sql STABLE PARALLEL SAFE
            AS $body$ SELECT %s(elements) $body$',
        convert
    );
    -- Readers take these bytes for those of a little-endian machine with the layout of PostgreSQL 18.
    IF telemetry.array_bytes(ARRAY [1, 2]::bigint[]) NOT IN (
        '\x010000000000000014000000020000000100000001000000000000000200000000000000',
        '\x0000000100000000000000140000000200000001000000080000000000000001000000080000000000000002'
    ) THEN
        CREATE OR REPLACE FUNCTION telemetry.array_bytes(elements anyarray) RETURNS bytea
            LANGUAGE sql STABLE PARALLEL SAFE AS 'SELECT pg_catalog.array_send(elements)';
    END IF;
END $$;
COMMENT ON FUNCTION telemetry.array_bytes(anyarray) IS
    '20 bytes of dimensions, then the elements: as they lie in memory, or big-endian with their lengths.';
REVOKE ALL ON FUNCTION telemetry.array_bytes(anyarray) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION telemetry.array_bytes(anyarray) TO twinmesh_twin_query, twinmesh_maintenance;
