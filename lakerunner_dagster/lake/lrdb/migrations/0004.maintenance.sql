-- The maintenance of the lake: objects on their way out, and published segments that cannot be read.
-- depends: 0003.work

-- An object that is to be deleted, or was. Segment ids are functions of their inputs, so the same key may be written
-- again meanwhile: whoever publishes looks here first. frequency_ms 0 where an orphan's key does not tell it.
CREATE TABLE deletions (
    organization_id  UUID NOT NULL,
    segment_id       BIGINT NOT NULL,
    instance_num     SMALLINT NOT NULL,
    signal           TEXT NOT NULL,
    frequency_ms     INT NOT NULL,
    dateint          INT NOT NULL,
    bucket           TEXT NOT NULL,
    key              TEXT NOT NULL,
    reason           TEXT NOT NULL,
    intended_at      TIMESTAMPTZ NOT NULL,
    confirmed_at     TIMESTAMPTZ,
    PRIMARY KEY (organization_id, segment_id),
    CONSTRAINT deleted_signal_is_known CHECK (signal IN ('logs', 'metrics', 'traces')),
    CONSTRAINT deletion_reason_is_known CHECK (reason IN ('superseded', 'orphan')),
    CONSTRAINT confirmed_after_intended CHECK (confirmed_at >= intended_at)
);

CREATE INDEX deletions_unconfirmed ON deletions (organization_id, instance_num) WHERE confirmed_at IS NULL;
CREATE INDEX deletions_confirmed ON deletions (confirmed_at) WHERE confirmed_at IS NOT NULL;

CREATE TABLE segment_faults (
    organization_id  UUID NOT NULL,
    segment_id       BIGINT NOT NULL,
    instance_num     SMALLINT NOT NULL,
    signal           TEXT NOT NULL,
    frequency_ms     INT NOT NULL,
    dateint          INT NOT NULL,
    hour             SMALLINT NOT NULL,
    error_class      TEXT NOT NULL,
    error_text       TEXT NOT NULL,
    attempts         INT NOT NULL DEFAULT 1,
    first_at         TIMESTAMPTZ NOT NULL DEFAULT now(),
    last_at          TIMESTAMPTZ NOT NULL DEFAULT now(),
    retry_at         TIMESTAMPTZ NOT NULL,
    PRIMARY KEY (organization_id, segment_id),
    CONSTRAINT faulty_signal_is_known CHECK (signal IN ('logs', 'metrics', 'traces')),
    CONSTRAINT fault_hour_is_of_a_day CHECK (hour BETWEEN 0 AND 23),
    CONSTRAINT fault_was_met CHECK (attempts > 0)
);

CREATE INDEX segment_faults_day ON segment_faults (organization_id, instance_num, signal, dateint);

-- What waits to be deleted is found among many more rows that stay.
CREATE INDEX log_seg_unpublished ON log_seg (organization_id, instance_num, segment_id) WHERE NOT published;
CREATE INDEX metric_seg_unpublished ON metric_seg (organization_id, instance_num, segment_id) WHERE NOT published;
CREATE INDEX trace_seg_unpublished ON trace_seg (organization_id, instance_num, segment_id) WHERE NOT published;
