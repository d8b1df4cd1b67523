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
