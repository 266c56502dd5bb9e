-- Forget answers of a shard's finished samples, and those of the agents that read them; open the samples again.
-- A sample whose route is forgotten loses its domain.
WITH stale AS (
    SELECT * FROM unnest(CAST(:domains AS text[]), CAST(:agents AS text[]), CAST(:models AS text[]),
                         CAST(:revisions AS text[]), CAST(:digests AS text[]))
             AS given (domain, agent, model, revision, digest)
), readers AS (
    SELECT * FROM unnest(CAST(:read_domains AS text[]), CAST(:read_agents AS text[]),
                         CAST(:readers AS text[])) AS given (domain, agent, reader)
), wrong AS (
    SELECT samples.domain, results.sample_id, results.stage, results.agent, stale.agent AS role
    FROM samples
    JOIN batches ON batches.id = samples.batch_id AND batches.state = 'done'
    JOIN results ON results.sample_id = samples.id
    JOIN stale ON stale.domain = samples.domain AND stale.agent = split_part(results.agent, '@', 1)
              AND stale.model = results.model AND stale.revision IS NOT DISTINCT FROM results.revision
              AND stale.digest = results.workflow
    WHERE samples.shard_id = :shard_id AND samples.state = 'done'
), gone AS (
    SELECT sample_id, stage, agent FROM wrong
    UNION
    SELECT results.sample_id, results.stage, results.agent
    FROM wrong
    JOIN readers ON readers.domain = wrong.domain AND readers.agent = wrong.role
    JOIN results ON results.sample_id = wrong.sample_id AND split_part(results.agent, '@', 1) = readers.reader
), forgotten AS (
    DELETE FROM results
    USING gone
    WHERE results.sample_id = gone.sample_id AND results.stage = gone.stage AND results.agent = gone.agent
    RETURNING results.*
), spent AS (
    -- What they cost stays; text that a tool has read took no tokens.
    INSERT INTO refused_answers (sample_id, candidate, stage, agent, outcome, model, worker, prompt_tokens,
                                 cached_tokens, completion_tokens, seconds, created_at)
    SELECT sample_id, candidate, stage, agent, 'forgotten', model, worker, prompt_tokens, cached_tokens,
           completion_tokens, seconds, created_at
    FROM forgotten
    WHERE prompt_tokens + completion_tokens > 0
), opened AS (
    SELECT sample_id, bool_or(stage = 'route') AS is_routed_again
    FROM forgotten
    GROUP BY sample_id
), before AS (
    SELECT samples.id, samples.domain FROM samples JOIN opened ON opened.sample_id = samples.id
)
UPDATE samples
SET state = 'pending', attempts = 0,
    domain = CASE WHEN is_routed_again THEN NULL ELSE samples.domain END,
    confidence = CASE WHEN is_routed_again THEN NULL ELSE samples.confidence END,
    candidate = 1  -- the first of those that are kept; each is graded again
FROM opened JOIN before ON before.id = opened.sample_id
WHERE samples.id = opened.sample_id
RETURNING samples.batch_id, before.domain, is_routed_again
