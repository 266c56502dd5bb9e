-- Samples by domain and state, samples without a domain last. Reads all samples of the run.
SELECT domain,
       count(*) FILTER (WHERE state = 'pending') AS pending,
       count(*) FILTER (WHERE state = 'done') AS done,
       count(*) FILTER (WHERE state = 'failed') AS failed,
       count(*) FILTER (WHERE state = 'held') AS held
FROM samples
WHERE shard_id IN (SELECT id FROM shards WHERE run_id = :run_id)
GROUP BY domain
ORDER BY domain COLLATE "C"
