-- Failed samples by kind, the most frequent first. Reads the failed samples.
SELECT error_kind AS kind,
       count(*) AS count,
       array_agg(DISTINCT error_stage::text) AS stages,
       bool_or(is_retryable) AS is_retryable,
       coalesce(min(error_text), '') AS example
FROM samples
WHERE shard_id IN (SELECT id FROM shards WHERE run_id = :run_id) AND state = 'failed'
GROUP BY error_kind
ORDER BY count(*) DESC, error_kind
