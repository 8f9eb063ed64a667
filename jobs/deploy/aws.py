"""AWS: machines by `ray up`, the policy of their role, and the policy of the bucket."""

from __future__ import annotations

from typing import Any

from jobs.deploy.values import Values

TOKEN = "/home/ray/.ray/auth_token"
PID = "/tmp/ray-start.pid"
# A spot machine's metadata announces its end two minutes before. `ray start --block` drains at SIGTERM.
_WATCH = (
    "nohup bash -c 'while sleep 5; do "
    'token=$(curl -sf -X PUT -H "X-aws-ec2-metadata-token-ttl-seconds: 60" http://169.254.169.254/latest/api/token); '
    'curl -sf -o /dev/null -H "X-aws-ec2-metadata-token: $token" '
    "http://169.254.169.254/latest/meta-data/spot/instance-action && "
    f"kill -TERM $(cat {PID}) && break; done' > /tmp/notice.log 2>&1 &"
)


def ray_up(v: Values) -> dict[str, Any]:
    """For `ray up`: an on-demand head without CPUs for work, and spot workers."""
    env = {
        "RAY_AUTH_MODE": "token",
        "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": str(v.drain),
        "RAY_worker_niceness": "0",
        "AWS_REGION": v.region,
    }
    options = [f"-e {name}={value}" for name, value in env.items()]
    profile = {"IamInstanceProfile": {"Name": f"{v.name}-node"}}
    disk = [{"DeviceName": "/dev/sda1", "Ebs": {"VolumeSize": 200, "VolumeType": "gp3"}}]
    metadata = {"MetadataOptions": {"HttpTokens": "required", "HttpPutResponseHopLimit": 2}}
    worker: dict[str, Any] = {"CPU": v.cpus} | ({"GPU": v.gpus} if v.gpus else {})
    spot = {"InstanceMarketOptions": {"MarketType": "spot"}} if v.spot else {}
    return {
        "cluster_name": v.name,
        "max_workers": v.workers,
        "idle_timeout_minutes": max(1, v.idle // 60),
        "provider": {"type": "aws", "region": v.region, "cache_stopped_nodes": False},
        "auth": {"ssh_user": "ubuntu"},
        "docker": {
            "image": v.image,
            "container_name": "xtra",
            "pull_before_run": True,
            "run_options": [*options, f"--shm-size={v.shm.removesuffix('i').lower()}", "--ulimit nofile=65536:65536"],
            "disable_shm_size_detection": True,
        },
        "head_node_type": "head",
        "available_node_types": {
            "head": {
                "resources": {"CPU": 0},
                "min_workers": 0,
                "max_workers": 0,
                "node_config": {
                    "InstanceType": v.head_machine,
                    "BlockDeviceMappings": disk,
                    "IamInstanceProfile": {"Name": f"{v.name}-head"},
                    **metadata,
                },
            },
            "worker": {
                "resources": worker,
                "min_workers": v.least,
                "max_workers": v.workers,
                "node_config": {
                    "InstanceType": v.machine,
                    "BlockDeviceMappings": disk,
                    **profile,
                    **metadata,
                    **spot,
                },
            },
        },
        # One token for all nodes and the user, made by ray get-auth-token --generate.
        "file_mounts": {TOKEN: "~/.ray/auth_token"},
        "head_start_ray_commands": [
            "ray stop",
            "ray start --head --port=6379 --num-cpus=0 --dashboard-host=127.0.0.1 "
            "--autoscaling-config=~/ray_bootstrap_config.yaml",
        ],
        "worker_start_ray_commands": [
            "ray stop",
            f"nohup ray start --address=$RAY_HEAD_IP:6379 --block > /tmp/ray-start.log 2>&1 & echo $! > {PID}",
            *([_WATCH] if v.spot else []),
        ],
    }


def node_policy(v: Values) -> dict[str, Any]:
    """The policy of every node and pod: read, write and sweep below the prefix, nothing else."""
    below = f"{v.prefix.strip('/')}/*" if v.prefix.strip("/") else "*"
    bucket = f"arn:aws:s3:::{v.bucket}"
    return _policy(
        {
            "Sid": "Objects",
            "Effect": "Allow",
            "Action": [
                "s3:GetObject",
                "s3:PutObject",
                "s3:DeleteObject",
                "s3:AbortMultipartUpload",
                "s3:ListMultipartUploadParts",
            ],
            "Resource": f"{bucket}/{below}",
        },
        {
            "Sid": "List",
            "Effect": "Allow",
            "Action": "s3:ListBucket",
            "Resource": bucket,
            "Condition": {"StringLike": {"s3:prefix": [below, below.removesuffix("/*")]}},
        },
        {
            "Sid": "Uploads",
            "Effect": "Allow",
            "Action": ["s3:ListBucketMultipartUploads", "s3:GetBucketLocation"],
            "Resource": bucket,
        },
    )


def head_policy(v: Values) -> dict[str, Any]:
    """The additional policy of the head of `ray up`: start and end the workers of its own cluster."""
    own = {"StringEquals": {"ec2:ResourceTag/ray-cluster-name": v.name}}
    region = {"StringEquals": {"aws:RequestedRegion": v.region}}
    return _policy(
        {
            "Sid": "Start",
            "Effect": "Allow",
            "Action": ["ec2:RunInstances", "ec2:CreateTags"],
            "Resource": "*",
            "Condition": region,
        },
        {"Sid": "Look", "Effect": "Allow", "Action": "ec2:Describe*", "Resource": "*"},
        {
            "Sid": "End",
            "Effect": "Allow",
            "Action": ["ec2:TerminateInstances", "ec2:StopInstances"],
            "Resource": "*",
            "Condition": own,
        },
        {
            "Sid": "Role",
            "Effect": "Allow",
            "Action": "iam:PassRole",
            "Resource": f"arn:aws:iam::{v.account}:role/{v.name}-node",
        },
    )


def bucket_policy(v: Values) -> dict[str, Any]:
    """Only encrypted connections, and only from the own account."""
    bucket = f"arn:aws:s3:::{v.bucket}"
    deny: dict[str, Any] = {"Effect": "Deny", "Principal": "*", "Resource": [bucket, f"{bucket}/*"], "Action": "s3:*"}
    return _policy(
        {"Sid": "EncryptedConnections", **deny, "Condition": {"Bool": {"aws:SecureTransport": "false"}}},
        {
            "Sid": "OwnAccount",
            **deny,
            "Condition": {
                "StringNotEquals": {"aws:PrincipalAccount": v.account},
                "Bool": {"aws:PrincipalIsAWSService": "false"},
            },
        },
    )


def _policy(*statements: dict[str, Any]) -> dict[str, Any]:
    return {"Version": "2012-10-17", "Statement": list(statements)}
