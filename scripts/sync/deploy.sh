#!/bin/bash
# The deploy command, the health check, and the return to the last good commit.

# Run an operator's command in the checkout, without our settings for git and without the lock.
# Needs: PRIVATE_VARIABLES, repository, name, branch, tag, before, head.
in_checkout() {
    (
        unset "${PRIVATE_VARIABLES[@]}"
        export GITOPS_REPOSITORY=${repository:-${name%%@*}} GITOPS_REF=refs/heads/$branch
        if [[ $tag ]]; then GITOPS_REF=refs/tags/$tag; fi
        export GITOPS_BEFORE=$before GITOPS_AFTER=$head
        exec "${END_WITH_SCRIPT[@]}" "$@"
    ) 9<&-
}

check_signature() {
    [[ ${setting[verify]} != true ]] || git verify-commit "$target" ||
        finish unverified "${target:0:10} has no valid signature of a trusted key; nothing was moved"
}

# Deploy if the tree moved or a deploy is pending, and record it. Ends the run if the deploy fails.
# Needs: setting, moved, deployed, head. Sets: action, notes.
deploy_if_pending() {
    local status=0
    if [[ ! ${setting[deploy]}${setting[health]} ]]; then
        if [[ ! $moved && $deployed && $deployed != "$head" ]]; then action='recorded as deployed'; fi
        if [[ $moved || $action ]]; then record_step deployed; fi
    elif ! affects_deploy; then
        notes+="; nothing in gitops.paths changed, so nothing was deployed"
    else
        deploy || status=$?
        case $status in
            0) action=deployed ;;
            "$UNHEALTHY") roll_back ;;
            *) finish deploy-failed "$failure at ${head:0:10}, which stays checked out; the next run deploys it again" ;;
        esac
    fi
    record_deploy
}

# Return true if a file in gitops.paths changed since the last successful deploy, or if that is not certain.
affects_deploy() {
    [[ ${paths[*]} && $deployed && $deployed != "$head" && ! $deploy_started && ! $again ]] || return 0
    ! git diff --quiet --ignore-submodules=none "$deployed" "$head" -- "${paths[@]}" 2>/dev/null
}

UNHEALTHY=2 # the status of deploy() if the health check fails

# Run the deploy command and the health check.
# Needs: setting, head. Sets: deploy_started, failure, steps. Returns 1 if the command fails, UNHEALTHY if the check does.
deploy() {
    deploy_started=started
    write_note "$head" "$head" "$deploy_started"
    if [[ ${setting[deploy]} ]]; then
        in_checkout bash -c "${setting[deploy]}" || {
            failure="gitops.deploy failed with exit $?"
            return 1
        }
    fi
    record_step deployed
    [[ ${setting[health]} ]] || return 0
    local status=0
    is_healthy || {
        failure="gitops.health did not succeed within ${setting[healthtimeout]} s"
        status=$UNHEALTHY
    }
    record_step healthy
    return "$status"
}

# Repeat the health check until it succeeds or gitops.healthTimeout is over. One attempt has at most 10 seconds.
is_healthy() {
    local left=${setting[healthtimeout]} end=$((SECONDS + setting[healthtimeout]))
    ((left)) || left=10 # a single attempt
    until in_checkout timeout --foreground --kill-after=1 "$((left < 1 ? 1 : left > 10 ? 10 : left))" \
        bash -c "${setting[health]}"; do
        ((SECONDS < end)) || return 1
        sleep 1
        left=$((end - SECONDS))
    done
}

# Record that HEAD is deployed. Needs: bad, deployed, head, state_refs.
record_deploy() {
    local status=0
    if [[ $bad ]]; then
        git update-ref --stdin <<<"update $state_refs/deployed $head"$'\n'"delete $state_refs/bad" || status=$?
    elif [[ $deployed != "$head" ]]; then
        git update-ref "$state_refs/deployed" "$head" || status=$?
    fi
    ((status == 0)) || finish failed "$state_refs/deployed cannot be set to ${head:0:10}, which is deployed"
    clear_note
}

# The health check failed: remember the commit, and return to the last good one.
roll_back() {
    [[ $deployed && $deployed != "$head" ]] ||
        finish deploy-failed "$failure at ${head:0:10}, and no other commit was deployed before"
    git update-ref "$state_refs/bad" "$head" || finish failed "$state_refs/bad cannot be written"
    restore_last_good
}

# Move to the last commit that was deployed with success, and deploy it. Does not return.
# Needs: deployed, target, failure.
restore_last_good() {
    local from=${target:0:10} to=${deployed:0:10} reason=$failure
    read_refs
    keep_local_commits
    [[ $head == "$deployed" ]] || move_to "$deployed" ||
        finish deploy-failed "$reason at $from, and $to cannot be restored: ${blocking_paths[*]:-$git_error}"
    update_submodules
    deploy || finish deploy-failed "$reason at $from; $to was restored, but there $failure"
    clear_note
    conclude rolled-back "$reason at $from, so $to was restored and deployed; push a better commit, or deploy it anyway" \
        "$(deploy_fix)"
}

# The remote is still at the commit whose health check failed: keep the last good one. Does not return.
# Needs: bad, head, deployed, deploy_pending.
keep_last_good() {
    local place='the remote'
    failure='gitops.health did not succeed'
    if [[ ${setting[pin]} ]]; then place=gitops.pin; fi
    # A roll-back that was killed is completed.
    [[ ($head == "$deployed" && ! $deploy_pending) || $dry_run ]] || restore_last_good
    conclude rolled-back "$place is still at ${bad:0:10}, whose health check failed, so ${deployed:0:10} stays; push a \
better commit, or deploy it anyway" "$(deploy_fix)"
}
