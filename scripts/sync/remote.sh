#!/bin/bash
# Facts about the remote: the branch to follow, and its commit. A run that finds nothing new talks to the remote once.

declare -A remote_tip # see gitops_sync.sh

TIMED_OUT=124 # the exit status of timeout(1) at its limit, which git never uses

# Disable every prompt: of git, of an askpass program, of ssh. An operator's own ssh command is used unchanged.
# Needs: config. Sets: GIT_TERMINAL_PROMPT, GIT_ASKPASS, SSH_ASKPASS, GIT_SSH_COMMAND, PRIVATE_VARIABLES.
forbid_prompts() {
    export GIT_TERMINAL_PROMPT=0 GIT_ASKPASS=true SSH_ASKPASS=true
    [[ ! ${GIT_SSH_COMMAND:-}${GIT_SSH:-}${config[core.sshcommand]:-} ]] || return 0
    export GIT_SSH_COMMAND='ssh -o BatchMode=yes -o ConnectTimeout=10'
    GIT_SSH_COMMAND+=' -o ServerAliveInterval=15 -o ServerAliveCountMax=2'
    PRIVATE_VARIABLES+=(GIT_SSH_COMMAND)
}

# Limit the seconds that all commands of this run may talk to the remote to half of the run's limit, so that a remote
# that does not answer is reported as such, and the rest is left for the deploy.
# Needs: GITOPS_TIMEOUT (the limit that the daemon enforces) or setting. Sets: remote_limit.
limit_remote() {
    remote_limit=${setting[timeout]}
    if [[ ${GITOPS_TIMEOUT:-} =~ ^[1-9][0-9]{0,5}$ ]]; then remote_limit=$GITOPS_TIMEOUT; fi
    remote_limit=$(((remote_limit + 1) / 2))
}

# remote_git ARGUMENT...: run a git command that talks to the remote, within `remote_limit`. Its messages are requested
# in English, because they are parsed, and `remote_error` becomes part of ours.
# Needs: GIT_DIR, dry_run. Sets: answer, remote_limit, remote_seconds, remote_messages; after a failure remote_error.
# Returns git's status, or TIMED_OUT.
remote_git() {
    local limit errors='' descriptor status=0 start=$SECONDS
    limit_remote
    limit=$((remote_limit - remote_seconds))
    if ((limit < 1)); then limit=1; fi
    # Errors go to a file, not to a pipe: a background ssh (ControlPersist) keeps standard error open.
    if [[ ! -t 2 || $1 == ls-remote ]]; then
        errors=$GIT_DIR/gitops-remote-errors
        if [[ $dry_run ]]; then errors=$(mktemp 2>/dev/null) || errors=''; fi
    fi
    if [[ $errors ]]; then exec {descriptor}>"$errors"; else exec {descriptor}>&2; fi
    # --foreground keeps git in this process group, which a signal to the run must reach as a whole.
    answer=$(LANGUAGE=en exec timeout --foreground --kill-after=5 "$limit" "${GIT[@]}" -c http.lowSpeedLimit=1000 \
        -c http.lowSpeedTime=30 -c remote.origin.tagOpt= "$@" 2>&"$descriptor" {descriptor}>&- 9<&-) || status=$?
    exec {descriptor}>&-
    remote_seconds=$((remote_seconds + SECONDS - start))
    if ((status == 137 && SECONDS - start >= limit)); then status=$TIMED_OUT; fi # git ignored SIGTERM
    remote_messages=''
    if ((status == 0)); then
        [[ ! -s $errors ]] || remote_messages=$(<"$errors")
    else
        read_remote_error "$errors" "$status"
    fi
    if [[ $errors && $dry_run ]]; then rm -f -- "$errors"; fi
    return "$status"
}

# read_remote_error FILE STATUS: forward the error output to the log, without the remote's terminal sequences, and find
# the line that gives the reason. Sets: remote_messages, remote_error.
read_remote_error() {
    local lines=('see the messages above') last i indent
    if [[ -s $1 ]]; then mapfile -t lines <"$1"; fi
    last=${#lines[@]}
    while ((last > 1)) && is_advice "${lines[last - 1]}"; do last=$((last - 1)); done
    lines=("${lines[@]//$'\e['*([0-9;?])[A-Za-z]/}")
    for ((i = 0; i < ${#lines[@]}; i++)); do
        indent=''
        if [[ ${lines[i]} == $'\t'* ]]; then indent=$'\t'; fi # parse_git_errors recognizes file names by it
        lines[i]=$indent${lines[i]//[[:cntrl:]]/}
    done
    if (($2 == TIMED_OUT)); then
        lines+=("no complete answer within $remote_limit s")
        last=${#lines[@]}
    fi
    remote_messages=$(printf '%s\n' "${lines[@]}")
    printf '%s\n' "$remote_messages" >&2
    remote_error=${lines[last - 1]%.}
}

# Return true for a line that git prints below an error that is more precise.
is_advice() {
    [[ ! $1 || $1 == $'\t'* || $1 == 'To add an exception for this directory, call:' || $1 == 'fatal: Could not read from remote repository.' ||
        $1 == 'Please make sure you have the correct access rights' || $1 == 'and the repository exists.' ]]
}

# Find the tracked branch and its commit at the remote, and fetch that commit if it is new.
# Needs: setting, default_branch, tracking, announced_branch, announced_commit. Sets: branch, target, previous_tip, and
# the refs again if anything changed since they were read.
locate_upstream() {
    branch=${setting[branch]:-$default_branch}
    if is_adoption; then branch=$head_branch; fi
    if [[ $branch ]]; then previous_tip=${tracking[$branch]:-}; fi
    if [[ ${setting[tag]} ]]; then
        locate_tag
    elif is_announced_commit_new && ! is_adoption; then
        fetch_branch
    else
        ask_remote || end_unreachable "$remote_error"
        choose_branch
        if [[ $target != "$previous_tip" ]]; then
            fetch_branch
        elif ! is_at_target; then
            read_refs # a person may have committed while the remote answered
        fi
    fi
    is_commit "$target" || finish failed "git fetch brought no commit of $branch"
}

# Return true if no run has deployed here and the checkout is on another branch than the default one. Then that branch is
# what the operator wants: it becomes gitops.branch, if the remote has it. (Linked worktrees share the setting.)
is_adoption() {
    [[ ! ${setting[branch]} && ! $deployed && ! $bad && $head && $head_branch && $head_branch != "$default_branch" ]] &&
        [[ $common_dir == "$GIT_DIR" ]]
}

# Return true if a commit of the tracked branch was announced that is not the last one known: a fetch is needed anyway.
is_announced_commit_new() {
    [[ ! $dry_run && $branch && $announced_branch == "$branch" && $announced_commit != "$previous_tip" ]] &&
        is_commit "$announced_commit"
}

# Ask the remote for its default branch, and for the commits of that and of the tracked branch, in one connection.
# ask_remote [URL]. Needs: branch. Sets: remote_default, remote_tip. Returns git's status.
ask_remote() {
    local value ref head_tip=''
    remote_default='' remote_tip=()
    remote_git ls-remote --symref -- "${1:-origin}" HEAD ${branch:+"refs/heads/$branch"} || return
    read_redirect
    while IFS=$'\t' read -r value ref; do
        # git compares only the last components: the pattern HEAD also matches refs/heads/HEAD.
        case $ref in
            HEAD) if [[ $value == ref:* ]]; then remote_default=${value#ref: refs/heads/}; else head_tip=$value; fi ;;
            "refs/heads/$branch") remote_tip[$branch]=$value ;;
        esac
    done <<<"$answer"
    is_branch "$remote_default" || remote_default=''
    if [[ $remote_default ]]; then remote_tip[$remote_default]=$head_tip; fi
}

# Read the repository's new name from the messages of the last command: the forge redirects the URL of a repository that
# was renamed or transferred. Needs: remote_messages. Sets: renamed.
read_redirect() {
    local url
    [[ $remote_messages == *'warning: redirecting to '* ]] || return 0
    url=${remote_messages##*'warning: redirecting to '} url=${url%%$'\n'*} url=${url%%+(/)}
    if [[ ${url%.git} =~ ^.*[/:]([^/:]+/[^/:]+)$ ]]; then renamed=${BASH_REMATCH[1]}; fi
}

# is_other_name NAME: return true if NAME is an owner/name, and not the one in the URL of origin. Needs: config.
is_other_name() {
    [[ $1 == */* ]] && is_name "${1%%/*}" && is_name "${1#*/}" && ! url_ends_in "$1" "${config[remote.origin.url]:-}"
}

# Choose the branch to follow: gitops.branch, else the remote's default branch.
# Needs: setting, remote_default, remote_tip. Sets: branch, target, previous_tip; if the default branch changed, the
# refs and refs/remotes/origin/HEAD. Ends with `missing` if the remote has no such branch.
choose_branch() {
    if is_adoption && [[ ${remote_tip[$head_branch]:-} && $head_branch != "$remote_default" ]]; then
        branch=$head_branch setting[branch]=$head_branch
        [[ $dry_run ]] || git config gitops.branch "$branch" || finish failed "gitops.branch cannot be set"
        notes+="; the checkout was on $branch, which is now its gitops.branch"
        list_refs # with the refs of this branch
        previous_tip=${tracking[$branch]:-}
    elif [[ ! ${setting[branch]} && $remote_default ]]; then
        branch=$remote_default
    fi
    [[ $branch ]] || finish missing "$origin has no default branch; set gitops.branch"
    target=${remote_tip[$branch]:-}
    [[ $target ]] || finish missing "the branch $branch does not exist at $origin; nothing was changed" \
        "${remote_default:+$(default_branch_fix)}"
    if [[ ! ${setting[branch]} && $branch != "$default_branch" ]]; then
        read_refs # the refs of this branch were not read before
        [[ $dry_run ]] || git symbolic-ref refs/remotes/origin/HEAD "refs/remotes/origin/$branch"
        default_branch=$branch
        previous_tip=${tracking[$branch]:-}
    fi
}

# Fetch the tracked branch. After a failure, ask the remote, whose answer is more precise than git's message, remove the
# possible causes on this side, and try once more.
# Sets: target, and the refs. Ends with `unreachable` if the remote cannot be fetched.
fetch_branch() {
    local status=0 error former=$branch
    fetch_once || status=$?
    ((status)) || return 0
    error=$remote_error
    ((status != TIMED_OUT)) || end_unreachable "$error"
    ask_remote || end_unreachable "$error"
    choose_branch
    if [[ $branch != "$former" ]] && fetch_once; then return; fi
    ! is_broken || repair "$error"
    remote_git remote prune origin || end_unreachable "$remote_error" # a stale tracking branch `a` prevents `a/b`
    fetch_once --no-tags || end_unreachable "$remote_error"           # and so may a tag
}

# Needs: branch, target in a dry run. Sets: target, the refs. Returns git's status.
fetch_once() {
    local options=(--quiet --no-auto-maintenance --no-write-fetch-head --no-prune)
    if [[ -t 2 ]]; then options[0]=--progress; fi
    if [[ $dry_run ]]; then
        git cat-file -e "$target^{commit}" 2>/dev/null ||
            remote_git fetch "${options[@]}" --no-tags --refmap= origin "refs/heads/$branch"
        return
    fi
    # Not through FETCH_HEAD, which a person's fetch of another branch overwrites.
    remote_git fetch "${options[@]}" --no-recurse-submodules "$@" \
        origin "+refs/heads/$branch:refs/remotes/origin/$branch" || return
    read_refs
    target=${tracking[$branch]:-}
}

# gitops.branch names a branch that the remote does not have: track the default branch, or print nothing.
default_branch_fix() { [[ ! ${setting[branch]} ]] || unset_fix branch; }

# Return true if the announced commit of the tracked branch or of a matching tag is neither at the remote nor here.
is_early() {
    [[ ! $dry_run && $announced_commit != "$target" ]] &&
        if [[ $tag ]]; then
            [[ $announced_tag && ! $is_announced_shown ]] && is_release "$announced_tag"
        else
            [[ $announced_branch == "$branch" ]]
        fi &&
        is_commit "$announced_commit" &&
        ! GIT_NO_LAZY_FETCH=1 git cat-file -e "$announced_commit^{commit}" 2>/dev/null
}

# end_unreachable REASON: end with `no-access` if the remote refuses, else with `unreachable`, or repair this side if
# its repository is damaged. Needs: origin, remote_messages.
end_unreachable() {
    if ! list_refs && is_broken; then repair "$1"; fi
    end_refused "$1"
    finish unreachable "$origin cannot be fetched: $1; tried again later"
}

# end_refused REASON: end with `no-access` if the remote's messages say that it rejects this host or hides the
# repository; else return. The words are those of OpenSSH, git's HTTP client and the large forges.
# Needs: origin, remote_messages, config.
end_refused() {
    local reason='' fix=''
    [[ ${config[remote.origin.url]:-} != @(/*|./*|../*|file:*) ]] || return 0 # a path cannot refuse
    case ${remote_messages,,} in
        *'host key verification failed'* | *'host identification has changed'*)
            reason='ssh does not accept its host key; compare its fingerprint with the published one'
            fix=$(host_key_fix)
            ;;
        *'permission denied ('* | *'permission denied, please try again'*)
            reason="it rejects the ssh key of $(user_name); add the public key to the repository, as a deploy key"
            fix=$(deploy_key_fix)
            ;;
        *'authentication failed'* | *'could not read username'* | *'could not read password'* | *'returned error: 401'* | \
            *'returned error: 403'* | *'http basic: access denied'* | *'bad credentials'*)
            reason='it rejects the token or password; store a valid one for git'
            fix=$(token_fix)
            ;;
        *'repository not found'* | *"' not found"* | *'returned error: 404'* | *'does not appear to be a git repository'* | \
            *'could not be found or you don'* | *'access denied or repository not exported'* | *'not found or no permission'*)
            reason='it has no such repository, or hides it from this host; check its URL and the access rights' ;;
        *) return 0 ;;
    esac
    finish no-access "$origin cannot be fetched: $reason ($1); tried again later" "$fix"
}
