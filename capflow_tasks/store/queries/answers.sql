-- Answers of finished samples by domain, agent, model, its revision and digest, with what they cost. Reads all results of the
-- run, or of one shard, or those of the last `newest` samples of each shard, or of these samples.
SELECT samples.domain, results.stage, split_part(results.agent, '@', 1) AS agent, results.model,
       results.revision, results.workflow AS digest,
       count(*) AS answers,
       sum(results.prompt_tokens)::bigint AS prompt,
       sum(results.cached_tokens)::bigint AS cached,
       sum(results.completion_tokens)::bigint AS completion
FROM shards
CROSS JOIN LATERAL (
    SELECT id, domain
    FROM samples
    WHERE samples.shard_id = shards.id AND state = 'done'
      AND (CAST(:sample_ids AS bigint[]) IS NULL OR id = ANY (CAST(:sample_ids AS bigint[])))
    ORDER BY idx DESC
    LIMIT CAST(:newest AS bigint)
) AS samples
JOIN results ON results.sample_id = samples.id
WHERE shards.run_id = :run_id AND (CAST(:shard_id AS bigint) IS NULL OR shards.id = :shard_id)
GROUP BY 1, 2, 3, 4, 5, 6
ORDER BY 1, 2, 3, 4, 5, 6
