-- Samples with a result, by domain and stage. Reads all results of the run.
SELECT samples.domain, results.stage, count(DISTINCT results.sample_id) AS samples
FROM results
JOIN samples ON samples.id = results.sample_id
WHERE samples.shard_id IN (SELECT id FROM shards WHERE run_id = :run_id)
GROUP BY samples.domain, results.stage
