import java.io.File;
import org.apache.hadoop.conf.Configured;
import org.apache.hadoop.fs.FileSystem;
import org.apache.hadoop.fs.Path;
import org.apache.hadoop.security.Credentials;
import org.apache.hadoop.security.token.Token;
import org.apache.hadoop.util.Tool;

/**
 * Tokens FILE RENEWER gets the delegation tokens that a job needs for the file system, like a program that submits a
 * job, and writes them into FILE: the token of the file system, and the token of the file system's KMS. `hdfs fetchdt`
 * and `hadoop dtutil get` get only the first. Prints the kind and the service of each token on a line.
 */
public class Tokens extends Configured implements Tool {
  @Override
  public int run(String[] args) throws Exception {
    Credentials all = new Credentials();
    FileSystem.get(getConf()).addDelegationTokens(args[1], all);
    for (Token<?> t : all.getAllTokens()) {
      System.out.println(t.getKind() + " " + t.getService());
    }
    all.writeTokenStorageFile(new Path(new File(args[0]).toURI()), getConf());
    return 0;
  }
}
