-- Routed samples by the router's confidence, in equal steps from 0 to 1. Reads all samples of the run.
SELECT least(floor(confidence * :steps), :steps - 1)::int AS step, count(*) AS samples
FROM samples
WHERE shard_id IN (SELECT id FROM shards WHERE run_id = :run_id) AND confidence IS NOT NULL
GROUP BY step
