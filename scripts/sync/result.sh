#!/bin/bash
# The end of a run: the outcome, the message, the result file and the times of the steps.

declare -A EXIT # see gitops_sync.sh

# finish OUTCOME MESSAGE [FIX]: report the outcome and end the run. FIX is one command, from fix.sh. The message never
# contains a command, so that no reader has to search a message, which may quote the remote, for one.
# Needs: EXIT, repository, name, notes, repaired, before, head, cause, steps, GITOPS_RESULT.
finish() {
    local outcome=$1 fix=${3:-} message="${repository:+${repository%/*}/}${name:-gitops_sync.sh}: $2$notes${repaired:+; $repaired}"
    escape_controls
    printf '%s: %s\n' "$outcome" "$message"
    if [[ $fix && -t 1 ]]; then printf 'fix: %s\n' "$fix"; fi
    if [[ ${GITOPS_RESULT:-} ]] && ! write_result "$outcome" "$message" "$fix"; then
        # Without a result file, exit status 0 means "updated", which may be better than the truth.
        if [[ $outcome != updated ]] && ((EXIT[$outcome] == 0)); then outcome=failed; fi
    fi
    exit "${EXIT[$outcome]}"
}

# write_result OUTCOME MESSAGE FIX
write_result() {
    printf '%s=%s\n' outcome "$1" before "$before" after "$head" message "$2" fix "$3" \
        ${cause:+cause "$cause"} "${steps[@]}" >"$GITOPS_RESULT"
}

# Write the control characters of the message as \x1b, so that it is one line.
# Sets: message (of finish).
escape_controls() {
    local code
    while [[ $message =~ [[:cntrl:]] ]]; do
        printf -v code '\\x%02x' "'${BASH_REMATCH[0]}"
        message=${message//"${BASH_REMATCH[0]}"/"$code"}
    done
}

# record_step STEP: note the end of a step in seconds since the epoch, with microseconds from bash 5.0 on. A reader can
# follow the steps in the result file. A roll-back deploys again, and the first deploy counts.
# Sets: steps.
record_step() {
    local now=${EPOCHREALTIME:-}
    [[ " ${steps[*]} " != *" $1 "* ]] || return 0
    now=${now//[!0-9]/} # the decimal separator depends on the locale
    if [[ $now ]]; then now=${now::-6}.${now: -6}; else printf -v now '%(%s)T' -1; fi
    steps+=("$1" "$now")
    [[ ! ${GITOPS_RESULT:-} ]] || { printf '%s=%s\n' "$1" "$now" >>"$GITOPS_RESULT"; } 2>/dev/null || :
}

# Print the current time as part of a name: 20261123T140509Z.
timestamp() { TZ=UTC0 printf '%(%Y%m%dT%H%M%SZ)T' -1; }
