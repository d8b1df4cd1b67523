-- What is asked every few minutes stays cheap, however long the history: totals, and indexes that leave it out.
-- depends: 0007.discarded_letters

-- What the boxes of a source and stage that are done have made: added to in the transaction that ends a box.
CREATE TABLE box_totals (
    organization_id  UUID NOT NULL,
    instance_num     SMALLINT NOT NULL,
    stage            TEXT NOT NULL,
    ingested         BIGINT NOT NULL,
    segments         BIGINT NOT NULL,
    records          BIGINT NOT NULL,
    PRIMARY KEY (organization_id, instance_num, stage),
    FOREIGN KEY (organization_id, instance_num) REFERENCES organization_buckets (organization_id, instance_num)
);

-- No box may end between the sums and the commit.
LOCK TABLE boxes IN SHARE ROW EXCLUSIVE MODE;
INSERT INTO box_totals (organization_id, instance_num, stage, ingested, segments, records)
SELECT organization_id, instance_num, stage, sum(ingested), sum(segments), sum(records)
FROM boxes WHERE state = 'done' GROUP BY 1, 2, 3;

-- The pace of each kind of work is told from the last hour of the ledger, which is kept for ever.
CREATE INDEX ledger_latest ON ledger (organization_id, signal, committed_at);
DROP INDEX ledger_compactions;
DROP INDEX ledger_rollups;

-- Objects with rejected records need attention as well, but may be all there are.
CREATE INDEX raw_objects_aside ON raw_objects (organization_id, signal, instance_num, state)
    WHERE state IN ('quarantined', 'missing');

-- The note of what has expired outlives its object: deleted_at tells it from those whose object is still to be deleted.
ALTER TABLE supersessions ADD COLUMN deleted_at TIMESTAMPTZ;
UPDATE supersessions s SET deleted_at = now()
WHERE NOT EXISTS (SELECT FROM log_seg g
                  WHERE (g.organization_id, g.dateint, g.segment_id) = (s.organization_id, s.dateint, s.segment_id))
  AND NOT EXISTS (SELECT FROM metric_seg g
                  WHERE (g.organization_id, g.dateint, g.segment_id) = (s.organization_id, s.dateint, s.segment_id))
  AND NOT EXISTS (SELECT FROM trace_seg g
                  WHERE (g.organization_id, g.dateint, g.segment_id) = (s.organization_id, s.dateint, s.segment_id));
CREATE INDEX supersessions_waiting ON supersessions (organization_id, instance_num, signal, dateint)
    WHERE deleted_at IS NULL;
DROP INDEX supersessions_age;
