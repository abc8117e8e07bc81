-- SQL for people: views in a schema of their own, and roles that are mapped to a tenant (docs/sql.md).

CREATE TABLE telemetry.sql_user (
    role_name name NOT NULL,
    tenant_id text NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT sql_user_pkey PRIMARY KEY (role_name)
);
COMMENT ON TABLE telemetry.sql_user IS
    'Whose samples a person''s role sees. Written by nobody but the migrator: whoever may run SQL may also SET, so that no '
    'setting says who they are, but current_user does.';
ALTER TABLE telemetry.sql_user ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
-- The own row only: a member who becomes somebody else, the group itself even, has none and sees nothing.
GRANT SELECT (role_name, tenant_id) ON telemetry.sql_user TO twinmesh_sql;
CREATE POLICY own ON telemetry.sql_user FOR SELECT TO twinmesh_sql USING (role_name = current_user);

---------------------------------------------------------------- what they may see

GRANT SELECT (tenant_id, series_id, device_id, metric, kind, unit) ON telemetry.series TO twinmesh_sql;
GRANT SELECT
    (tenant_id, series_id, start_time, end_time, times, doubles, ints, bools, strings, points, codes, quality, order_no)
    ON telemetry.segment TO twinmesh_sql;
GRANT SELECT
    (tenant_id, series_id, time, double_value, int_value, bool_value, string_value, point_value, quality)
    ON telemetry.series_latest TO twinmesh_sql;
GRANT SELECT (tenant_id, event_id, device_id, asset_id, type, severity, time, received_at, message, attributes)
    ON telemetry.event TO twinmesh_sql;
GRANT SELECT
    (tenant_id, series_id, start_time, count, min, max, sum, mean, m2, first, last, first_time, last_time, anomalies,
     quality_sum, quality_count, stddev, quality)
    ON telemetry.rollup_minute, telemetry.rollup_hour, telemetry.rollup_day TO twinmesh_sql;

CREATE POLICY sql_user ON telemetry.series FOR SELECT TO twinmesh_sql
    USING (tenant_id = (SELECT u.tenant_id FROM telemetry.sql_user AS u WHERE u.role_name = current_user));
CREATE POLICY sql_user ON telemetry.segment FOR SELECT TO twinmesh_sql
    USING (tenant_id = (SELECT u.tenant_id FROM telemetry.sql_user AS u WHERE u.role_name = current_user));
CREATE POLICY sql_user ON telemetry.series_latest FOR SELECT TO twinmesh_sql
    USING (tenant_id = (SELECT u.tenant_id FROM telemetry.sql_user AS u WHERE u.role_name = current_user));
CREATE POLICY sql_user ON telemetry.event FOR SELECT TO twinmesh_sql
    USING (tenant_id = (SELECT u.tenant_id FROM telemetry.sql_user AS u WHERE u.role_name = current_user));
CREATE POLICY sql_user ON telemetry.rollup_minute FOR SELECT TO twinmesh_sql
    USING (tenant_id = (SELECT u.tenant_id FROM telemetry.sql_user AS u WHERE u.role_name = current_user));
CREATE POLICY sql_user ON telemetry.rollup_hour FOR SELECT TO twinmesh_sql
    USING (tenant_id = (SELECT u.tenant_id FROM telemetry.sql_user AS u WHERE u.role_name = current_user));
CREATE POLICY sql_user ON telemetry.rollup_day FOR SELECT TO twinmesh_sql
    USING (tenant_id = (SELECT u.tenant_id FROM telemetry.sql_user AS u WHERE u.role_name = current_user));

---------------------------------------------------------------- how it looks

-- They may use this schema only; its views read with the rights of whoever asks.
CREATE SCHEMA twinmesh;
COMMENT ON SCHEMA twinmesh IS 'Telemetry for people who ask in SQL: docs/sql.md.';
GRANT USAGE ON SCHEMA twinmesh TO twinmesh_sql;

CREATE VIEW twinmesh.series WITH (security_invoker = true) AS
SELECT device_id, metric, (ARRAY ['double', 'int', 'bool', 'string', 'point'])[kind] AS kind, unit
FROM telemetry.series;
COMMENT ON VIEW twinmesh.series IS 'Every series that ever had a sample. A metric whose kind was changed has several.';

CREATE VIEW twinmesh.telemetry WITH (security_invoker = true) AS
SELECT DISTINCT ON (device_id, metric, time)
    device_id, metric, time, value, int_value, bool_value, text_value, latitude, longitude, altitude, quality, anomaly,
    unit
FROM (
    SELECT series.device_id, series.metric, series.unit, series.series_id, segment.order_no,
        'epoch'::timestamptz + sample.time * interval '1 microsecond' AS time,
        coalesce(sample.double_value, sample.int_value::double precision, sample.bool_value::integer) AS value,
        sample.int_value, sample.bool_value,
        CASE
            WHEN sample.code IS NOT NULL THEN segment.strings[sample.code]
            WHEN cardinality(segment.strings) = 1 THEN segment.strings[1]
            ELSE sample.string_value
        END AS text_value,
        segment.points[3 * sample.place - 2] AS latitude,
        segment.points[3 * sample.place - 1] AS longitude,
        nullif(segment.points[3 * sample.place], 'NaN') AS altitude,
        CASE WHEN judged.code >= 0 THEN judged.code & 127 END AS quality,
        CASE WHEN judged.code >= 0 THEN judged.code & (1 << 27) <> 0 END AS anomaly
    FROM telemetry.series
    JOIN telemetry.segment USING (tenant_id, series_id)
    CROSS JOIN LATERAL unnest(
        segment.times, segment.doubles, segment.ints, segment.bools, segment.codes, segment.strings, segment.quality
    ) WITH ORDINALITY
        AS sample (time, double_value, int_value, bool_value, code, string_value, quality, place)
    CROSS JOIN LATERAL (
        SELECT CASE WHEN cardinality(segment.quality) = 1 THEN segment.quality[1] ELSE sample.quality END AS code
    ) AS judged
) AS stored
-- Of equal times the later commit counts, and of two kinds in one commit the newer series.
ORDER BY device_id, metric, time, order_no DESC, series_id DESC;
COMMENT ON VIEW twinmesh.telemetry IS
    'Single samples that are not sealed yet: those of the last hours. It empties as data is sealed; the rollups stay, and '
    'single samples of any age are got with `twinmesh query`, `twinmesh export` or the API.';
COMMENT ON COLUMN twinmesh.telemetry.value IS 'Of kinds double, int and bool (0 or 1).';
COMMENT ON COLUMN twinmesh.telemetry.quality IS 'Score in percent; null: not judged.';

CREATE VIEW twinmesh.latest WITH (security_invoker = true) AS
SELECT DISTINCT ON (device_id, metric)
    series.device_id, series.metric, 'epoch'::timestamptz + latest.time * interval '1 microsecond' AS time,
    coalesce(latest.double_value, latest.int_value::double precision, latest.bool_value::integer) AS value,
    latest.int_value, latest.bool_value, latest.string_value AS text_value,
    latest.point_value[1] AS latitude, latest.point_value[2] AS longitude,
    nullif(latest.point_value[3], 'NaN') AS altitude,
    CASE WHEN latest.quality >= 0 THEN latest.quality & 127 END AS quality,
    CASE WHEN latest.quality >= 0 THEN latest.quality & (1 << 27) <> 0 END AS anomaly,
    series.unit
FROM telemetry.series
JOIN telemetry.series_latest AS latest USING (tenant_id, series_id)
ORDER BY series.device_id, series.metric, latest.time DESC, series.series_id DESC;
COMMENT ON VIEW twinmesh.latest IS 'The latest sample of each metric, a few seconds old at the most; the twin has it at once.';

CREATE VIEW twinmesh.events WITH (security_invoker = true) AS
SELECT event_id, device_id, asset_id, type, severity,
    'epoch'::timestamptz + time * interval '1 microsecond' AS time, received_at, message, attributes
FROM telemetry.event;

CREATE VIEW twinmesh.rollup_minute WITH (security_invoker = true) AS
SELECT series.device_id, series.metric, series.unit, rollup.start_time, rollup.count, rollup.min, rollup.max, rollup.mean,
    rollup.sum, rollup.stddev, rollup.first, rollup.last, rollup.first_time, rollup.last_time, rollup.anomalies,
    rollup.quality
FROM telemetry.series
JOIN telemetry.rollup_minute AS rollup USING (tenant_id, series_id);
COMMENT ON VIEW twinmesh.rollup_minute IS 'UTC minutes of the last days. The running ones lag by seconds.';

CREATE VIEW twinmesh.rollup_hour WITH (security_invoker = true) AS
SELECT series.device_id, series.metric, series.unit, rollup.start_time, rollup.count, rollup.min, rollup.max, rollup.mean,
    rollup.sum, rollup.stddev, rollup.first, rollup.last, rollup.first_time, rollup.last_time, rollup.anomalies,
    rollup.quality
FROM telemetry.series
JOIN telemetry.rollup_hour AS rollup USING (tenant_id, series_id);

CREATE VIEW twinmesh.rollup_day WITH (security_invoker = true) AS
SELECT series.device_id, series.metric, series.unit, rollup.start_time, rollup.count, rollup.min, rollup.max, rollup.mean,
    rollup.sum, rollup.stddev, rollup.first, rollup.last, rollup.first_time, rollup.last_time, rollup.anomalies,
    rollup.quality
FROM telemetry.series
JOIN telemetry.rollup_day AS rollup USING (tenant_id, series_id);

GRANT SELECT
    ON twinmesh.series, twinmesh.telemetry, twinmesh.latest, twinmesh.events, twinmesh.rollup_minute, twinmesh.rollup_hour,
       twinmesh.rollup_day
    TO twinmesh_sql;
