-- Samples by domain and state. Reads all samples of the run.
SELECT domain, state, count(*) AS samples
FROM samples
WHERE shard_id IN (SELECT id FROM shards WHERE run_id = :run_id)
GROUP BY domain, state
